import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_while_saving.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_no_kill_loses_anything(tmp_path):
    """Before each call that touches the disk in turn, and at 200 random instants while saving."""
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # else it could not fork
    root = str(SCRIPT.parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **one_thread, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), str(tmp_path), "200", "12345"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["lost"] == []
    assert result["mid_save"] >= 100  # most kills did hit a save that was under way
    assert "gf-saving" in result["kinds"]
    assert result["lost_at_calls"] == []
    assert result["calls"] >= 19  # open, write and fsync of four files, the folders, two renames
