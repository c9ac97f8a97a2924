"""Epsilon against rounds and against noise, as one SVG file: two curves need no plotting library."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.rounding import rounded_up

_WIDTH, _HEIGHT, _MARGIN = 460, 320, 56
_POINTS = 12


def curves(plan: PrivacyPlan) -> dict[str, list[tuple[float, float]]]:
    """Points (rounds, epsilon) up to twice the planned rounds, and (noise multiplier, epsilon) from half to four times.

    Raises:
      PrivacyError: for a plan without privacy, whose epsilon is infinite everywhere.
    """
    if not plan.private:
        raise PrivacyError(
            'privacy.mechanism is "none": epsilon is infinite whatever the rounds and the noise; expected a mechanism to plot.'
        )
    rounds = sorted({max(1, round(2 * plan.rounds * (step + 1) / _POINTS)) for step in range(_POINTS)} | {plan.rounds})
    noises = sorted({plan.noise_multiplier * 2 ** (3 * step / _POINTS - 1) for step in range(_POINTS + 1)})
    return {
        "rounds": [(count, plan.curve(rounds=count)) for count in rounds],
        "noise_multiplier": [(noise, plan.curve(noise_multiplier=noise)) for noise in noises],
    }


def svg(plan: PrivacyPlan, epsilon: float) -> str:
    """The two curves side by side, the plan marked on both.

    Args:
      plan: of a mechanism with a finite epsilon.
      epsilon: the plan's own, at its delta.
    """
    points = curves(plan)
    title = f"epsilon at delta {plan.delta!r}: {plan.clients} {plan.unit}s, each {plan.mechanism.participation(plan)}"
    panels = [
        _panel(points["rounds"], (plan.rounds, epsilon), "rounds", f"at noise multiplier {plan.noise_multiplier:g}", 0),
        _panel(
            points["noise_multiplier"],
            (plan.noise_multiplier, epsilon),
            "noise multiplier",
            f"after {plan.rounds} rounds",
            _WIDTH,
        ),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH} {_HEIGHT + 30}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n<text x="{_WIDTH}" y="20" text-anchor="middle" font-size="14">{escape(title)}</text>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def _panel(
    points: Sequence[tuple[float, float]], here: tuple[float, float], label: str, subtitle: str, left: float
) -> str:
    widest, highest = max(x for x, _ in points), max(y for _, y in points)

    def pixel(x: float, y: float) -> tuple[float, float]:
        across = left + _MARGIN + x / widest * (_WIDTH - 2 * _MARGIN)
        return across, 30 + _HEIGHT - _MARGIN - y / highest * (_HEIGHT - 2 * _MARGIN)

    parts = []
    for value in _ticks(highest):
        x, y = pixel(0, value)
        parts.append(
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{pixel(widest, 0)[0]:.1f}" y2="{y:.1f}" stroke="#ddd"/><text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in _ticks(widest):
        x, y = pixel(value, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>')
    line = " ".join("{:.1f},{:.1f}".format(*pixel(x, y)) for x, y in points)
    mark_x, mark_y = pixel(*here)
    centre = left + _WIDTH / 2
    parts += [
        f'<polyline points="{line}" fill="none" stroke="#1f6fb2" stroke-width="2"/>',
        f'<circle cx="{mark_x:.1f}" cy="{mark_y:.1f}" r="4" fill="#c0392b"/><text x="{mark_x + 8:.1f}" y="{mark_y - 6:.1f}">{rounded_up(here[1])}</text>',
        f'<text x="{centre}" y="{30 + _HEIGHT - 12}" text-anchor="middle">{escape(label)}</text>',
        f'<text x="{centre}" y="46" text-anchor="middle" fill="#555">epsilon, {escape(subtitle)}</text>',
    ]
    return "\n".join(parts)


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0 to `highest`, about five of them."""
    rough = highest / 5
    base = 10 ** math.floor(math.log10(rough))
    step = base * next(factor for factor in (1, 2, 5, 10) if base * factor >= rough)
    return [round(step * index, 10) for index in range(int(highest / step + 1e-9) + 1)]
