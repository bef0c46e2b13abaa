import subprocess
import sys


def test_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets', 'ray', 'scipy.special'}"
    code = f"import sys, evomerge.engines, evomerge.fitness; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
