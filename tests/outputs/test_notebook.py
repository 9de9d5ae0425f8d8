"""A run in a notebook: its cells are executed, and their outputs are looked at."""

from __future__ import annotations

from typing import Any

import pytest

from raykfold.outputs.notebook import in_notebook

CELLS = {
    "train": """
        from raykfold import RunConfig, cross_validate
        config = RunConfig(demo=True, epochs=2, folds=(1, 2), model_dir="out")
        summary = cross_validate(config)
    """,
    "summary": "summary",
    "frame": "summary.to_frame()",
    "again": "cross_validate(config, progress=False)",
    "refused": 'cross_validate(RunConfig(processed_dir="nowhere", model_dir="refused"))',
    "interrupted": """
        import os, signal
        from raykfold import Observer

        class Impatient(Observer):
            def epoch_committed(self, fold, metrics):
                os.killpg(0, signal.SIGINT)  # as a frontend does: Ray's processes get it, too

        config = RunConfig(demo=True, epochs=3, folds=(1, 2), model_dir="stopped")
        cross_validate(config, observers=[Impatient()])
    """,
    "resumed": """
        import ray
        connected = ray.is_initialized()
        summary = cross_validate(config)
        connected, summary.status, [fold.epochs_run for fold in summary.folds]
    """,
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of each cell, as a saved notebook has them."""
    from textwrap import dedent

    import nbclient
    import nbformat

    cells = [nbformat.v4.new_code_cell(dedent(source)) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    where = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", allow_errors=True, resources=where
    ).execute()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


def only(outputs: list[Any], kind: str) -> Any:
    """The output of a cell that has one alone: no text of Ray's, and nothing twice."""
    assert [output.output_type for output in outputs] == [kind]
    return outputs[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cell_that_trains_has_one_output(outputs: dict[str, list[Any]]) -> None:
    shown = only(outputs["train"], "display_data").data
    (line,) = shown["text/plain"].splitlines()
    assert line.startswith("demo: 2 folds complete in ") and " at the best epochs" in line
    assert line in shown["text/html"] and "<progress" not in shown["text/html"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_summary_is_shown_as_a_table_with_curves(outputs: dict[str, list[Any]]) -> None:
    page = only(outputs["summary"], "execute_result").data["text/html"]
    assert page.count("<tr>") == 3 and page.count("<polyline") == 2
    assert only(outputs["again"], "execute_result").data["text/html"] == page
    frame = only(outputs["frame"], "execute_result").data["text/html"]
    assert "kept_val_accuracy" in frame and "complete" in frame


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bad_input_is_one_line_in_a_notebook_too(outputs: dict[str, list[Any]]) -> None:
    error = only(outputs["refused"], "error")
    (line,) = error.traceback
    assert "nowhere: no such folder" in line and "\n" not in line


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cell_that_is_interrupted_goes_on_when_it_is_run_again(
    outputs: dict[str, list[Any]],
) -> None:
    progress, error = outputs["interrupted"]
    assert progress.data["text/plain"].startswith("Stopped.")
    assert error.ename == "KeyboardInterrupt"
    progress, result = outputs["resumed"]
    assert result.data["text/plain"] == "(False, 'complete', [3, 3])"
    first, *others = progress.data["text/plain"].splitlines()
    assert first.startswith("demo: 2 folds complete")
    assert any("resumes after epoch" in line for line in others)
    assert len(set(others)) == len(others)


def test_this_process_is_no_notebook() -> None:
    assert not in_notebook()
