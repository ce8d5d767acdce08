"""How the page reads forms: in memory, complete ones only, and within limits."""

from __future__ import annotations

from io import BytesIO
from typing import IO, Any

from flask import Request, request
from flask_wtf import CSRFProtect
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from .errors import UploadError

# For all of a form but its image.
ALLOWANCE = 64 * 1024


class StrictFormParser(FormDataParser):
    """A parser that refuses a malformed or incomplete form, and a long one without an image."""

    def parse(
        self,
        stream: IO[bytes],
        mimetype: str,
        content_length: int | None,
        options: dict[str, str] | None = None,
    ) -> Any:
        # 8 MB of `a&a&a&...` take seconds and hundreds of megabytes.
        if mimetype != "multipart/form-data" and (content_length or 0) > ALLOWANCE:
            raise RequestEntityTooLarge
        # By default a malformed form counts as empty.
        self.silent = False
        try:
            found = super().parse(stream, mimetype, content_length, options)
        except ValueError as error:
            raise UploadError("IncompleteUpload") from error
        # A part without a name; Flask-WTF fails on it.
        if any(None in names for names in found[1:]):
            raise UploadError("IncompleteUpload")
        return found


class MemoryRequest(Request):
    """A request that never writes an uploaded file to the disk."""

    form_data_parser_class = StrictFormParser

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        # Werkzeug would write a large file to the disk. MAX_CONTENT_LENGTH bounds the memory.
        return BytesIO()


class Protection(CSRFProtect):
    """The CSRF check, also for a referrer that is missing or not a URL."""

    def protect(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().protect(*args, **kwargs)
        except CSRFError as error:
            if request.is_secure and not request.referrer:
                raise UploadError("NoReferrer") from error
            raise
        except ValueError as error:
            raise CSRFError("The referrer is malformed.") from error
