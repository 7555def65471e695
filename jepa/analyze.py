"""Say what happened in a run and what to do next: `python -m jepa.analyze run=<dir> [wait=true]`.

Writes analysis.json, report.md and report.html into the run directory, from what is recorded there;
no model and no data is opened. The rules are those of `jepa/rules.yaml`; your notes at the end of
report.md stay.
"""

import json
import shlex
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from jepa.config import CONF, run_command

if TYPE_CHECKING:
    from jepa.recorded import Recorded
    from jepa.rules import Finding


@hydra.main(config_path=str(CONF), config_name="analyze")
def main(cfg: DictConfig) -> None:
    """Wait if asked to, analyse, write, and say the decision."""
    from jepa import recorded

    folder = recorded.directory_of(cfg.run, key="run")
    if recorded.is_running(folder):
        if cfg.wait:
            print(f"waiting for the run in {folder} to end", flush=True)
            print(f"it ended after {recorded.wait_for(folder):.0f} s")
        else:
            print(f"the run in {folder} goes on: wait=true waits for its end")
    content = write_analysis(recorded.open_run(cfg.run))
    decision = content["decision"]
    print(f"{decision['name']}: {decision['says']}")
    for one in content["findings"]:
        print(f"{one['state']}: {one['name']}: {one['says']}")
        for c in one["changes"]:
            print(f"  {c['setting']}: {c['from']} -> {c['to']} ({c['why']})")
    if content["next"]:
        print(f"next: {content['next']}")
    print(f"written: {folder / 'report.html'}")


def analyze(run: "Recorded") -> dict[str, Any]:
    """Return the analysis of a run as plain values."""
    from jepa import analysis, rules

    facts = analysis.facts_of(run)
    found = rules.findings(facts, run.settings)
    decision = rules.decide(facts, run.settings)
    return {
        "schema": 1,
        "run": str(run.folder),
        "model": run.family,
        "data": run.data,
        "status": run.report["status"],
        "reason": run.report["reason"],
        "decision": decision.plain(),
        "next": next_command(run, decision, found),
        "checks": rules.checks(facts),
        "findings": [one.plain() for one in found],
        "projected_hours": {str(n): h for n, h in analysis.project(facts, run).items()},
        "facts": facts,
    }


def next_command(run: "Recorded", decision: "Finding", found: "list[Finding]") -> str:
    """Return the command of a decision with its changes, or with those of what is critical."""
    changes = {c.setting: c.after for c in decision.changes}
    if not changes:
        critical = [c for one in found if one.state == "critical" for c in one.changes]
        changes = {c.setting: c.after for c in reversed(critical)}
    if "{changes}" in decision.command and not changes:
        return ""  # the same run again would tell nothing new
    given = run.overrides or ([] if run.settings == {} else ["<the settings of this run>"])
    kept = [one for one in given if one.split("=", 1)[0] not in changes]
    shown = [one if one.startswith("<the ") else shlex.quote(one) for one in kept]
    parts = {
        "overrides": " ".join(shown),
        "changes": " ".join(f"{key}={word(value)}" for key, value in changes.items()),
        "run": shlex.quote(str(run.folder)),
    }
    typed = [one.format_map(parts) for one in decision.command.split()]
    return " ".join(one for one in typed if one)


def word(value: Any) -> str:
    """Return a value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_analysis(run: "Recorded") -> dict[str, Any]:
    """Write analysis.json, report.md and report.html; return the analysis."""
    from jepa import analysis_page, night, report

    content = analyze(run)
    page = run.folder / "report.md"
    plain = night.page(run.folder, run.report)
    notes = report.notes_in(page, report.markdown(run.report))
    text = f"{plain}\n{analysis_page.markdown(content)}"
    write = report.write_text
    write(run.folder / "analysis.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write(page, report.with_notes(text, notes))
    own = "" if notes == report.TEMPLATE.removeprefix("\n") or notes == report.TEMPLATE else notes
    write(run.folder / "report.html", analysis_page.html_page(run, content, own))
    return content


def cli() -> None:
    """Run the command."""
    run_command(main, "analyze")


if __name__ == "__main__":
    cli()
