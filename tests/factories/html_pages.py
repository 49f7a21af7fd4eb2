"""A parser of HTML pages: it records what a page shows and loads, and checks its structure."""

from html.parser import HTMLParser

VOID = {"meta", "br", "wbr", "use", "path"}  # elements without an end tag


class Page(HTMLParser):
    """Checks that every element is closed in order.

    Attributes:
        open: The elements that are open.
        tags: The names of all elements.
        loads: The addresses that a browser would load.
        texts: The texts of the page.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [
            text or ""
            for name, text in attrs
            if name in {"src", "href", "xlink:href"} and not (text or "").startswith("#")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def parsed_html(html: str) -> Page:
    """Parse a page, and check that all elements are closed."""
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page
