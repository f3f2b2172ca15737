"""The tables of ``edit_quality.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one row a method, means over all pairs."""
    lines = [
        "| method | success | success (2nd) | others kept | others kept (2nd) | PSNR to true, dB | SSIM | LPIPS | u "
        "per edit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean = row["all"]
        shares = [mean[key] for key in ("success_classifier", "success_judge", "kept_classifier", "kept_judge")]
        cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
        u = f"{row['u_inversion'] + row['u_forward']:.0f}" + (
            f" + {row['u_backward']:.0f} backward" if row["u_backward"] else ""
        )
        lines.append(
            f"| {row['method']['name']} | {cells} | {mean['psnr_true']:.2f} | {mean['ssim_true']:.3f} | "
            f"{mean['lpips_true']:.3f} | {u} |"
        )
    return "\n".join(lines)


def edit_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: success / others kept / PSNR to the true picture, one row an edit, one column a method."""
    lines = ["| edit | " + " | ".join(row["method"]["name"] for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for edit in rows[0]["edits"]:
        cells = [row["edits"][edit] for row in rows]
        texts = [
            f"{100 * c['success_classifier']:.0f} % / {100 * c['kept_classifier']:.1f} % / {c['psnr_true']:.1f} dB"
            for c in cells
        ]
        lines.append(f"| {edit} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def without(rows: list[dict[str, Any]], edits: Sequence[str]) -> list[dict[str, Any]]:
    """The rows over all other edits; every edit has as many pairs."""
    kept = []
    for row in rows:
        left = {edit: figures for edit, figures in row["edits"].items() if edit not in edits}
        everything = {key: float(np.mean([figures[key] for figures in left.values()])) for key in row["all"]}
        kept.append({**row, "all": everything, "edits": left})
    return kept


def with_cfg(row: dict[str, Any]) -> dict[str, Any]:
    """A row that names its cfg."""
    return {**row, "method": {**row["method"], "name": f"{row['method']['name']}, cfg {row['method']['cfg']:g}"}}


def tables(rows: list[dict[str, Any]], leave_out: list[str]) -> str:
    """Means over all edits, and over all but those to leave out."""
    return "\n\n".join(
        [table(rows)] + ([f"Without {', '.join(leave_out)}:\n\n{table(without(rows, leave_out))}"] if leave_out else [])
    )


def undominated(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows than which no other both succeeds and keeps at least as much (and one of them more)."""
    figures = [(row["all"]["success_classifier"], row["all"]["kept_classifier"]) for row in rows]

    def beaten(own: tuple[float, float]) -> bool:
        return any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in figures)

    return [row for row, own in zip(rows, figures, strict=True) if not beaten(own)]


def at_equal_success(curves: dict[str, list[dict[str, Any]]], points: int = 4) -> str:
    """Markdown: what each method keeps at the same success, read off its curve over cfg.

    A cfg that both succeeds less and keeps less than another of the method is left out: no one would choose it.

    Args:
        curves: method -> its rows at rising cfg.
        points: levels of success, spread over the range that all methods reach.
    """
    curves = {name: undominated(rows) for name, rows in curves.items()}
    seen = {name: [row["all"]["success_classifier"] for row in rows] for name, rows in curves.items()}
    low, high = max(min(values) for values in seen.values()), min(max(values) for values in seen.values())
    if low > high:
        return "The methods reach no success in common."
    levels = np.linspace(low, high, points)
    lines = ["| at success | " + " | ".join(curves) + " |", "|---" * (len(curves) + 1) + "|"]
    for level in levels:
        cells = [f"{100 * level:.0f} %"]
        for name, rows in curves.items():
            order = sorted(range(len(rows)), key=lambda i: seen[name][i])
            read = [
                np.interp(level, [seen[name][i] for i in order], [rows[i]["all"][key] for i in order])
                for key in ("kept_classifier", "kept_judge", "psnr_true")
            ]
            cells.append(f"{100 * read[0]:.1f} % / {100 * read[1]:.1f} % / {read[2]:.1f} dB")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
