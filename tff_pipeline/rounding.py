"""Numbers for people: an upper bound is never shown smaller than it is.

`round` and the formats of floats round to nearest, so an epsilon of 3.9990000004 would read 3.999: a promise that was not
computed. What goes into JSON as a float is not rounded at all.
"""

import decimal
import math

DIGITS = 4  # as many as a float that `progress` shows has, so that it does not round again


def rounded_up(bound: float, digits: int = DIGITS) -> str:
    """The smallest decimal number of at most `digits` significant digits that is not below `bound`, in plain notation.

    >>> rounded_up(3.9990000004), rounded_up(3.9981), rounded_up(0.25), rounded_up(12341.0)
    ('4', '3.999', '0.25', '12350')
    """
    if not 0 < bound < math.inf:
        return f"{bound:g}"
    exact = decimal.Decimal(bound)  # every binary digit of it
    step = decimal.Decimal(1).scaleb(exact.adjusted() - digits + 1)
    shown = f"{exact.quantize(step, rounding=decimal.ROUND_CEILING):f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown
