"""Follows the quotes of a csv file through text that is not kept: lines above the limit, and records that are rejected."""


class Quotes:
    """Knows whether a quoted field is open at the end of the text it was given, as Python's csv in its strict mode would."""

    def __init__(self, delimiter: str):
        self._delimiter = delimiter  # "" where quotes have no meaning
        self._state = "start"  # of a field; or "plain", "quoted", "quote" (inside a quoted field), "broken"

    @property
    def open(self) -> bool:
        return self._state == "quoted"

    def feed(self, text: str) -> None:
        """Goes on through text that may end anywhere; a line end outside of quotes begins a new record."""
        at = 0
        while at < len(text) and self._delimiter:
            if self._state == "quoted":
                quote = text.find('"', at)
                at = quote + 1 if quote >= 0 else len(text)
                self._state = "quote" if quote >= 0 else "quoted"
            elif self._state in ("start", "quote") and text[at] == '"':
                at, self._state = at + 1, "quoted"
            else:
                at = self._outside(text, at)

    def _outside(self, text: str, at: int) -> int:
        """Goes on to where a quote may open a field, or to the end, and returns that index."""
        quote = text.find('"', at)
        end = quote if quote >= 0 else len(text)
        if text[at] not in (self._delimiter, "\r", "\n") and self._state in ("quote", "start"):
            self._state = "broken" if self._state == "quote" else "plain"
        line_end = max(text.rfind("\n", at, end), text.rfind("\r", at, end))
        if line_end >= 0:
            self._state, at = "start", line_end + 1
        if at < end and self._state != "broken":
            self._state = "start" if text[end - 1] == self._delimiter else "plain"
        if end == quote and self._state != "start":
            return end + 1  # a quote in the middle of a field is a character
        return end
