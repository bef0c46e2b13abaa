// Three objectives at once: a cube to turn with the mouse or the arrow keys.

class Cube {
  constructor(element) {
    Object.assign(this, { element, yaw: -0.7, pitch: 0.45 });
    this.ranges = [0, 1, 2].map((k) => padded(extent(marks.map((m) => measure(byId.get(m.id), m.kind, k)[0]))));
    element.addEventListener("pointerdown", (event) => { this.from = [event.clientX, event.clientY]; this.moved = false; });
    element.addEventListener("pointermove", (event) => this.move(event));
    addEventListener("pointerup", () => { this.from = null; });
    element.addEventListener("pointerleave", hideTip);
    element.addEventListener("click", (event) => {
      const mark = !this.moved && Scatter.prototype.nearest.call(this, event);
      if (mark) select(mark.id, event.shiftKey);
    });
    element.addEventListener("keydown", (event) => this.key(event));
    follow(() => redraw(element));
    chart(element, (width) => this.draw(width));
  }

  move(event) {
    if (!this.from) return Scatter.prototype.hover.call(this, event);
    const [dx, dy] = [event.clientX - this.from[0], event.clientY - this.from[1]];
    if (!this.moved && Math.hypot(dx, dy) < 4) return undefined;
    this.moved = true;
    this.from = [event.clientX, event.clientY];
    return this.turn(dx / 120, dy / 120);
  }

  key(event) {
    const turns = { ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, -0.12], ArrowDown: [0, 0.12] };
    if (!turns[event.key]) return;
    event.preventDefault();
    this.turn(...turns[event.key]);
  }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.max(-1.5, Math.min(1.5, this.pitch + pitch));
    redraw(this.element);
  }

  draw(width) {
    const height = Math.min(420, Math.max(280, width * 0.75)), size = Math.min(width, height) * 0.52;
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    this.project = ([a, b, c]) => { // better points lie up and to the front, whatever the goal
      const [x, z, y] = [a, b, c].map((v, k) => (objectives[k].goal === "max" ? v : 1 - v) - 0.5);
      const depth = -x * sy + z * cy;
      return [width / 2 + size * (x * cy + z * sy), height / 2 - size * (y * cp - depth * sp), depth * cp + y * sp];
    };
    const [surface, pen] = canvas(width, height);
    this.frame(pen);
    this.points = marks.map((mark) => {
      const at = this.ranges.map(([low, high], k) => (measure(byId.get(mark.id), mark.kind, k)[0] - low) / (high - low));
      const [x, y, depth] = this.project(at);
      return { ...mark, x, y, depth };
    });
    this.points.sort((a, b) => a.group.intervals - b.group.intervals || b.depth - a.depth).forEach((point) => this.dot(pen, point));
    this.element.replaceChildren(surface);
  }

  frame(pen) {
    pen.strokeStyle = color("--line");
    pen.fillStyle = color("--soft");
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "center";
    const corners = [0, 1].flatMap((a) => [0, 1].flatMap((b) => [0, 1].map((c) => [a, b, c])));
    pen.beginPath();
    for (const corner of corners) {
      for (const k of [0, 1, 2]) {
        if (corner[k]) continue;
        const other = corner.map((v, i) => i === k ? 1 : v);
        pen.moveTo(...this.project(corner).slice(0, 2));
        pen.lineTo(...this.project(other).slice(0, 2));
      }
    }
    pen.stroke();
    objectives.forEach((objective, k) => {
      const worst = objectives.map((o) => o.goal === "max" ? 0 : 1);
      const place = (share) => this.project(worst.map((v, i) => i === k ? share : v));
      const [low, high] = this.ranges[k];
      const [x, y] = place(0.5);
      pen.fillText(`${objective.name} ${objective.goal === "max" ? "↑" : "↓"}`, x, y + 16);
      for (const end of [0, 1]) pen.fillText(number(end ? high : low), place(end)[0], place(end)[1] + 14);
    });
  }

  dot(pen, { id, x, y, group }) {
    const dim = state.shown && !state.shown.has(id);
    pen.globalAlpha = dim ? 0.12 : group.intervals ? 1 : this.points.length > 1000 ? 0.2 : 0.5;
    pen.strokeStyle = pen.fillStyle = color(`--${group.color}`);
    pen.beginPath();
    pen.arc(x, y, group.size / 2.4, 0, 7);
    if (group.confirmed) pen.fill(); else pen.stroke();
    if (id === state.selected || id === state.compared) {
      pen.strokeStyle = color("--ink");
      pen.setLineDash(id === state.compared ? [3, 3] : []);
      pen.beginPath();
      pen.arc(x, y, group.size / 2 + 5, 0, 7);
      pen.stroke();
      pen.setLineDash([]);
    }
    pen.globalAlpha = 1;
  }
}

const cube = document.getElementById("cube");
if (cube) new Cube(cube);
