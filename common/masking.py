"""Passwords in URLs are left out of messages.

Every place where text leaves a program calls `mask_passwords`: error lines, logs, what child
processes print, and the messages of git, DVC and Prefect, from which records are made.
"""

import re

MASK = "***"
URL = re.compile(r"(?<=://)(?:(?!\w{1,20}://)\S)+")  # one after the other, if no space is between
PORT = re.compile(r"\d{1,5}(?:[/?#]|$)")
SEPARATOR = re.compile(r"([?&;])")
SECRET_KEY = re.compile(r"pass|pwd|secret|token|signature|sig|credential|key|auth", re.IGNORECASE)
# Chat services put the secret of a webhook into its path.
WEBHOOK = re.compile(r"[^/@]+/(?:services|hooks|api/webhooks|webhook\w*)/")
QUOTED_END = re.compile(r"['\"<>].*", re.DOTALL)


def mask_passwords(text: str) -> str:
    """Replace user and password, and secrets in the query or path, of each URL in a text."""
    if "://" not in text:
        return text
    return URL.sub(lambda match: _mask_secret_parts(_mask_user(match[0])), text)


def _mask_user(url: str) -> str:
    """Mask the beginning of a URL without its scheme, USER:PASSWORD@HOST or TOKEN@HOST."""
    user, colon, rest = url.partition(":")
    if colon and not re.search(r"[/?#@]", user) and not PORT.match(rest):
        # A password, which may contain any character. Only a query or a closing quotation mark ends
        # the search for its @.
        end = re.search(r"\?[\w.-]+=|['\"](?=[,;:)\]}>]|$)", url)
        at = url.rfind("@", 0, end.start() if end else len(url))
        if at < 0:
            at = url.rfind("@")
    else:
        end = re.search(r"[/?#'\"<>]", url)
        at = url.rfind("@", 0, end.start() if end else len(url))
    return url if at < 0 else MASK + url[at:]


def _mask_secret_parts(url: str) -> str:
    """Mask the values of ?token=... and the like, and what follows the path of a webhook."""
    if webhook := WEBHOOK.match(url):
        return webhook[0] + MASK + _quoted_end(url)
    parts = SEPARATOR.split(url)
    for k in range(2, len(parts), 2):
        key, equals, value = parts[k].partition("=")
        if value and SECRET_KEY.search(key):
            parts[k] = key + equals + MASK + _quoted_end(value)
    return "".join(parts)


def _quoted_end(text: str) -> str:
    """Return what follows a URL that stands in quotation marks, from the mark on."""
    end = QUOTED_END.search(text)
    return end[0] if end else ""
