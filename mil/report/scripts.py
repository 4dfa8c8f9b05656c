"""Data, library and policy of a page with scripts: what may run in it, and nothing else."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
from dataclasses import dataclass

from markupsafe import Markup
from plotly.offline import get_plotlyjs

__all__ = ["Packed", "as_data", "packed_plotly", "policy"]


@dataclass(frozen=True)
class Packed:
    """A library as the page carries it: ``packed`` is ``code`` gzipped, in base64."""

    code: str
    packed: Markup


@functools.cache
def packed_plotly() -> Packed:
    """The plotly of the installed package; the page unpacks it when its text can be read.

    As it is it would take 4.8 MB of the page, and browsers would parse it before the first scroll.
    """
    # The parser of a page makes one line end of several kinds; the digest must not depend on it.
    code = get_plotlyjs().replace("\r\n", "\n")
    squeezed = gzip.compress(code.encode(), compresslevel=9, mtime=0)
    return Packed(code, Markup(base64.b64encode(squeezed).decode()))


def as_data(value: object) -> Markup:
    """JSON that cannot end the script element it stands in, whatever names say."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        body = body.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(body)


def policy(*scripts: str) -> str:
    """A content security policy: these scripts by digest, styles and pictures within the page.

    Nothing is loaded from anywhere, and a script or handler that is not one of these does not run.
    """
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()) for code in scripts]
    allowed = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
