"""Networks of which each process holds a part: the weights of one process, and the same decision everywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharding.cases import PENALTIES, Case

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
}
TOLERANCE = 1e-12  # of float64: sums in another order

FEW = ("l1", "rows", "columns", "nonnegative")
TWO = ("l1", "columns")  # cut anywhere, and gathered
CASES = {
    2: [
        *(Case("fsdp", penalty, scope=scope) for penalty in PENALTIES for scope in ("global", "layer")),
        *(Case("fsdp", penalty, optimizer) for penalty in TWO for optimizer in ("adamw", "rmsprop")),
        *(Case("fsdp", penalty, refit=6) for penalty in TWO),
        *(Case("fsdp", penalty, options={"mode": "gradient"}) for penalty in TWO),
        Case("fsdp", "l1", options={"strength_scale": "inverse_std"}),
        *(Case("fsdp", penalty, refit=60, options={"target_compression": 3.0}, num_steps=70) for penalty in TWO),
        *(Case("ddp", penalty) for penalty in PENALTIES),
        *(Case("ddp", penalty, scope="layer") for penalty in TWO),
        *(Case("tensor_parallel", penalty) for penalty in PENALTIES),
        *(Case("tensor_parallel", penalty, scope="layer") for penalty in TWO),
        *(Case("tensor_parallel", penalty, "adamw") for penalty in TWO),
        *(Case("tensor_parallel", penalty, options={"mode": "gradient"}) for penalty in TWO),
    ],
    4: [
        *(Case("fsdp", penalty) for penalty in FEW),
        *(Case("hybrid", penalty) for penalty in FEW),
        *(Case("both", penalty) for penalty in FEW),
    ],
}
EACH = [(size, i) for size, cases in CASES.items() for i in range(len(cases))]


def run(task: str, size: int, directory: Path) -> Any:
    """What so many processes have found."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command = [*launch, "-m", "sharding.ranks", task, str(directory)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads((directory / f"{task}-{size}.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("ranks")
    results = {}
    for size, cases in CASES.items():
        (directory / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
        results[size] = run("compare_all", size, directory)
    return results


@pytest.mark.slow
@pytest.mark.parametrize(("size", "i"), EACH, ids=[f"{size}-{CASES[size][i]}" for size, i in EACH])
def test_a_shared_network_is_that_of_one_process(found, size, i):
    outcome = found[size][i]
    assert outcome["weights"] < TOLERANCE
    assert outcome["history"] < 1e-6  # float32
    assert outcome["value"] < TOLERANCE
    assert outcome["scales"] < TOLERANCE
    assert outcome["same_decisions"]
    assert outcome["same_summary"]
    assert outcome["open"] > 0


@pytest.mark.slow
def test_the_cases_are_worth_comparing(found):
    by_case = {str(case): outcome for case, outcome in zip(CASES[2], found[2], strict=True)}
    assert by_case["fsdp-l1-sgd-global"]["open"] < 1
    assert by_case["fsdp-columns-sgd-global"]["open"] < 1
    assert by_case["fsdp-l1-sgd-global-refit=6"]["zeros"] > 0
    assert by_case["fsdp-columns-sgd-global-refit=6"]["zeros"] > 0
    num_weights = 45 + 240 + 96 + 8
    kept = num_weights - by_case["fsdp-l1-sgd-global-refit=60-target_compression=3.0"]["zeros"]
    assert abs(num_weights / kept - 3) < 0.15


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("all_odd", 2, tmp_path_factory.mktemp("odd"))


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_in_one_process_closes_the_gate_of_all(odd):
    assert odd["nonfinite_in_one_process"]["seen"] == [[1, [0.0]]] * 2
    first, second = odd["nonfinite_beside_the_shared"]["seen"]
    assert first == second
    assert first[0] == 2  # the second step, whose NaN is in all weights at the third


@pytest.mark.slow
def test_the_value_of_a_penalty_in_half_precision_is_summed_in_float32(odd):
    assert odd["value_in_bfloat16"]["value"] == pytest.approx(0.1 * odd["value_in_bfloat16"]["norms"], rel=1e-2)


@pytest.mark.slow
def test_flat_pieces_of_parameters_are_refused(odd):
    assert "use torch's fully_shard (FSDP2) instead" in odd["fully_sharded_1"]["error"]


@pytest.mark.slow
def test_the_optimizers_state_is_saved_by_each_process_for_itself_and_resumes_bit_for_bit(odd):
    assert odd["saved_by_each_process"]["num_masks"] > 0
    assert odd["saved_by_each_process"]["identical"]


@pytest.mark.slow
def test_one_process_may_ask_for_the_optimizers_state_alone(odd):
    assert odd["state_of_one_process"]["num_masks"] > 0


@pytest.mark.slow
def test_a_regularizer_built_before_fully_shard_says_so(odd):
    assert "build the Regularizer after them" in odd["built_too_early"]["error"]


@pytest.mark.slow
def test_mixed_precision_accumulation_and_clipping_keep_the_decisions_the_same(odd):
    outcome = odd["bfloat16_and_clipped"]
    assert outcome["seen"][0] == outcome["seen"][1]
    assert max(outcome["seen"][0]) == 1
    assert len(outcome["seen"][0]) == outcome["steps"] == 6
    assert outcome["weights"] == 389


@pytest.mark.slow
def test_a_distributed_checkpoint_goes_from_2_processes_to_1_and_back(tmp_path):
    whole = {size: run("save_checkpoint", size, tmp_path) for size in (1, 2)}
    assert whole[1]["hidden"] == whole[2]["hidden"] > 0  # zeros that only the masks remember
    for size in (1, 2):
        resumed = run("load_checkpoint", size, tmp_path)
        assert resumed["steps"] == resumed["records"] == whole[size]["steps"]
        for name, weights in whole[3 - size]["weights"].items():
            np.testing.assert_allclose(resumed["weights"][name], weights, rtol=0, atol=TOLERANCE)
            assert ((np.array(resumed["weights"][name]) == 0) == (np.array(weights) == 0)).all()
