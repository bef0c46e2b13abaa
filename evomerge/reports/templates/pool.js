const tables = read("evomerge-figures");
for (const [id, { columns, rows, values, range }] of Object.entries(tables)) {
  const place = document.getElementById(id);
  place.append(heatTable(place.dataset.label, columns, rows, values, range));
}
