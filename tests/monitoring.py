"""The dashboard and the rules in `deploy/`, and what their queries ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "deploy" / "grafana" / "solon.json"
RULES = ROOT / "deploy" / "prometheus" / "solon-rules.yaml"


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def rules() -> list[dict[str, Any]]:
    """Recording and alert rules, in order."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard_queries() -> dict[str, str]:
    """Query by the place where it is."""
    board = dashboard()
    found = {
        f"panel {panel['title']!r} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel.get("targets", [])
    }
    found |= {f"annotation {item['name']!r}": item["expr"] for item in board["annotations"]["list"] if "expr" in item}
    return found


def rule_queries() -> dict[str, str]:
    return {str(rule.get("alert") or rule["record"]): rule["expr"] for rule in rules()}
