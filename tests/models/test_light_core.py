"""Models need torch, numpy, einops, pydantic and safetensors, and load nothing else."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys, torch
known = {name.split(".")[0] for name in sys.modules}
import pc_ewa
from pc_ewa.models.checkpoints.write import save_weights
model = pc_ewa.create_model("point_mae_classifier", num_classes=3, depth=1)
for format, suffix in (("official", "pth"), ("safetensors", "safetensors")):
    save_weights(model, f"model.{suffix}", format, {}, [], {})
    pc_ewa.load_pretrained(f"model.{suffix}", model)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} - known - set(sys.stdlib_module_names))))
"""
PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_inspection"}


def test_building_loading_and_saving_a_model_bring_five_packages(
    one_thread_environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    environment = one_thread_environment | {"PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    loaded = {name for name in json.loads(done.stdout) if not name.startswith("_")}
    assert loaded <= {"pc_ewa", "numpy", "einops", "safetensors", *PYDANTIC}
