"""Numbers as tables print them."""

from __future__ import annotations

from seqrl.report.statistics import Estimate

_FORMS = {"success": ".2f", "normalized": ".1f", "probability": ".2f"}
NOTHING = "-"
"""What stands where nothing was measured."""


def score_text(value: float | None, score: str) -> str:
    """A score in as many digits as it deserves.

    >>> score_text(0.957, "success"), score_text(43.21, "normalized"), score_text(1234.5, "return")
    ('0.96', '43.2', '1234')
    >>> score_text(-0.5, "return"), score_text(0.0041, "return"), score_text(0.1512, "regret")
    ('-0.50', '0.0041', '0.151')
    """
    if value is None:
        return NOTHING
    form = _FORMS.get(score)
    if form is None:
        size = abs(value)
        form = ".0f" if size >= 100 else ".1f" if size >= 10 else ".2f" if size >= 1 else ".3g"
        if score == "return" and size < 1:
            form = ".2f" if size >= 0.005 or not size else ".2g"
    text = f"{value:{form}}"
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def estimate_text(e: Estimate | None, score: str, seeds: bool = False) -> str:
    """Mean and interval, or mean and the fact that there is one seed.

    Args:
        seeds: whether to say how many seeds there are where there are several.

    >>> estimate_text(Estimate(0.9, 0.8, 1.0, 3, "bootstrap over 3 seeds"), "success")
    '0.90 [0.80, 1.00]'
    >>> estimate_text(Estimate(0.9, None, None, 1, "1 seed, no interval"), "success")
    '0.90 (1 seed)'
    """
    if e is None:
        return NOTHING
    if e.low is None:
        return f"{score_text(e.value, score)} (1 seed)"
    interval = f"[{score_text(e.low, score)}, {score_text(e.high, score)}]"
    count = f" ({e.seeds} seeds)" if seeds else ""
    return f"{score_text(e.value, score)} {interval}{count}"


def reference_text(text: str) -> str:
    """What is printed of a reference policy, which is not trained and has no seeds.

    >>> reference_text("0.50 (1 seed)")
    '0.50 (reference)'
    """
    return text.replace("(1 seed)", "(reference)")


def numbers(values: list[int]) -> str:
    """Whole numbers as ranges.

    >>> numbers([0, 1, 2, 5]), numbers([3])
    ('0-2, 5', '3')
    """
    parts: list[list[int]] = []
    for v in sorted(set(values)):
        if parts and v == parts[-1][-1] + 1:
            parts[-1].append(v)
        else:
            parts.append([v])
    return ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
