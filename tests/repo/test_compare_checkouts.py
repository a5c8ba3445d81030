"""The script that compares two checkouts sees what differs, and nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("compare_checkouts")


def kinds(found: list[Any]) -> list[tuple[str, str]]:
    return [(difference.kind, difference.path) for difference in found]


def test_equal_results_do_not_differ(script: Any) -> None:
    told = {"scores": {"test": {"value": 0.5, "n": 3}}, "steps": [{"accepted": True}, None]}
    assert script.differences(told, {**told}) == []
    assert script.count_values(told) == 4


def test_missing_keys_new_keys_and_other_values_are_told_apart_at_any_depth(script: Any) -> None:
    old = {"steps": [{"score": 0.5, "reason": "first"}], "alpha": 1}
    new = {"steps": [{"score": 0.6, "gain": 0.1}], "alpha": 1.0}
    assert kinds(script.differences(old, new)) == [
        ("differs", "steps.0.score"),
        ("missing", "steps.0.reason"),
        ("new", "steps.0.gain"),
    ]


def test_other_lengths_other_kinds_and_truth_for_one_are_differences(script: Any) -> None:
    assert kinds(script.differences({"kept": [1, 2]}, {"kept": [1]})) == [("differs", "kept")]
    assert kinds(script.differences({"kept": [1]}, {"kept": {"0": 1}})) == [("differs", "kept")]
    assert kinds(script.differences({"kept": 1}, {"kept": True})) == [("differs", "kept")]
    assert kinds(script.differences({"kept": 0}, {"kept": None})) == [("differs", "kept")]


def test_of_times_and_machines_only_the_keys_are_compared(script: Any) -> None:
    old = {"seconds": 0.1, "environment": {"cores": 2, "python": "3.11"}, "peak_bytes": 5}
    new = {"seconds": None, "environment": {"cores": 4}}
    assert kinds(script.differences(old, new)) == [
        ("missing", "environment.python"),
        ("missing", "peak_bytes"),
    ]


def test_what_is_allowed_passes_with_its_reason_but_no_key_may_go(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = script.Allowed("greedy*", "stdout", "steps.*.p_value", "it was one-sided")
    monkeypatch.setattr(script, "ALLOWED", (meant,))
    row = script.Row("greedy")
    row.add("stdout", script.Difference("differs", "steps.3.p_value", "is 0.2; it was 0.1"))
    assert (row.failures, len(row.allowed)) == ([], 1)
    assert "it was one-sided" in row.allowed[0]
    row.add("stdout", script.Difference("missing", "steps.4.p_value", "is missing"))
    row.add("stdout", script.Difference("differs", "steps.3.score", "is 1; it was 2"))
    row.add("soup.safetensors.stockpot.json", script.Difference("differs", "steps.3.p_value", ""))
    assert len(row.failures) == 3


def test_new_keys_of_a_list_are_noted_once_for_all_cases(script: Any) -> None:
    rows = [script.Row("greedy"), script.Row("auto")]
    for row in rows:
        for i in (0, 11):
            row.add("stdout", script.Difference("new", f"table.{i}.gain", "is new"))
    assert script.noted(rows) == ["", "notes:", "  stdout: table.*.gain: is new (greedy, auto)"]
    assert script.show(rows).endswith("all 2 cases are equal")


def test_the_keys_that_scripts_rely_on_are_asked_for(script: Any) -> None:
    assert script.lacking({"verified": True}, "verify") == ["differences"]
    assert script.lacking({"curves": {}}, "interpolate") == []
    assert script.lacking({"curve": []}, "interpolate") == ["chosen"]
    error = {"error": {"type": "RecipeError", "message": "no"}}
    assert script.lacking(error, "average", failed=True) == ["error.problems"]
    assert script.lacking({}, "diagnose") == []


def test_files_are_compared_by_what_they_are(script: Any, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, value, text in ((old, 1.0, "a"), (new, 1.5, "b")):
        folder.mkdir()
        tensors = {"w": np.array([value, 2], np.float32), "n": np.array(3)}
        importlib.import_module("checkout_runs").write_safetensors(
            folder / "soup.safetensors", tensors
        )
        (folder / "record.json").write_text(f'{{"seconds": {value}, "text": "{text}"}}')
        (folder / "runs.jsonl").write_text('{"seconds": 1}\n{"seconds": 2}\n')
        (folder / "report.html").write_text(text)
        (folder / "models.csv").write_text(text)
        (folder / ".state").write_text(text)
    (old / "gone.pt").write_bytes(b"")
    row = script.Row("greedy")
    script.compare_folders(row, old, new)
    assert row.files == 5
    assert row.failures == [
        "gone.pt: is not written any more",
        "models.csv: other bytes (1; they were 1)",
        'record.json: text: is "b"; it was "a"',
        "soup.safetensors: 1 of 2 parts differ: w by up to 0.5",
    ]


def test_a_call_that_should_not_have_failed_is_one_failure(script: Any) -> None:
    case = script.Case("verify", (("verify", "soup.safetensors"),))
    right = script.Outcome(case.calls[0], 0, '{"verified": true, "differences": []}', "", 0.5)
    error = '{"error": {"type": "VerificationError", "message": "gone", "problems": []}}'
    wrong = script.Outcome(case.calls[0], 1, error, "", 0.5)
    places = (Path("nowhere"), Path("nowhere"))
    ran = [script.Ran((outcome,), 0) for outcome in (right, wrong)]
    assert script.compare_case(case, ran[0], ran[0], places).failures == []
    assert script.compare_case(case, *ran, places).failures == [
        "stdout: new ended with 1, expected 0: VerificationError: gone"
    ]


def test_what_was_in_the_journal_must_not_be_scored_again(script: Any) -> None:
    case = script.Case("continuity-sweep", (("sweep",),), continues=True)
    ran = [script.Ran((), scored) for scored in (0, 64, None)]
    places = (Path("nowhere"), Path("nowhere"))
    assert script.compare_case(case, ran[0], ran[1], places).failures == [
        "journal: 64 examples were scored that it did not know; old 0"
    ]
    assert script.compare_case(case, ran[1], ran[0], places).failures == []
    assert "cannot be counted" in script.compare_case(case, ran[0], ran[2], places).notes[0]


def test_names_choose_cases_and_bring_what_these_need(script: Any) -> None:
    cases = script.all_cases()
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert all(names.index(need) < names.index(case.name) for case in cases for need in case.needs)
    chosen = script.select(cases, ["expand", "continuity-greedy"])
    assert [case.name for case in chosen] == ["expand", "continuity-greedy"]
    needed = {case.name for case in script.with_needs(chosen, cases)}
    assert needed == {"expand", "compress", "sparse", "greedy"}
    assert len(script.select(cases, None)) == len(cases)
    with pytest.raises(ValueError, match="there is no nonsense; there are average, "):
        script.select(cases, ["nonsense"])


def test_a_checkout_is_equal_to_itself(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(ROOT), str(ROOT), "--only", "inspect", "--work", str(tmp_path / "work")]
    assert script.main(given) == 0
    assert capsys.readouterr().out.endswith("all 2 cases are equal\n")
    assert (tmp_path / "work/new/told/inspect.1.json").is_file()


def test_a_folder_without_code_is_wrong_usage(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main([str(ROOT), str(tmp_path)])
    assert stopped.value.code == 2
