"""The tables of an HTML page."""

from html.parser import HTMLParser


class Tables(HTMLParser):
    """The tables of a page: by their caption, rows of texts."""

    def __init__(self, text):
        super().__init__()
        self.found = {}
        self.rows = None
        self.texts = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td", "caption"):
            self.texts = []

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.rows[-1].append("".join(self.texts).strip())
        elif tag == "caption":
            self.caption = "".join(self.texts).strip()
        elif tag == "table":
            self.found[self.caption] = self.rows

    def handle_data(self, data):
        if self.texts is not None:
            self.texts.append(data)
