"""
Receives forms: a form that is incomplete or not UTF-8 is rejected.

Starlette's parser returns what has arrived when a form ends before its closing boundary, and decodes text that is not
UTF-8 as Latin-1; so a part of a request would be dropped or changed without a word.
"""

from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request


MAX_FILES, MAX_FIELDS = 3, 32


class FormReader(MultiPartParser):
    """Starlette's parser of forms, which also raises for a form without a closing boundary, or text not in UTF-8."""

    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:
            try:
                part.data.decode()
            except UnicodeDecodeError as error:
                raise MultiPartException(
                    f"{part.field_name}: not valid UTF-8; send text as UTF-8, and a file with a filename."
                ) from error
        super().on_part_end()

    async def parse(self) -> FormData:
        self.stream = self._checked(self.stream)
        return await super().parse()

    async def _checked(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Raises at the end of the stream, where `parse` still closes its files."""
        async for chunk in stream:
            yield chunk
        if not self.is_complete:
            raise MultiPartException(
                "The form is incomplete: its closing boundary is missing. The upload was interrupted, or its boundary "
                "or Content-Length is wrong; send it again."
            )


async def receive_form(request: Request, max_part_bytes: int) -> tuple[dict[str, str], dict[str, bytes]]:
    """
    Receives a form.

    Args:
        request (`Request`): A request with a form as its body.
        max_part_bytes (`int`): Maximum size of a text field.

    Returns:
        `tuple`: The text fields, and the contents of the files, by name.

    Raises:
        HTTPException: If the form is malformed, incomplete, or has too many parts.
        ValueError: If a name occurs twice.
    """
    reader = FormReader(
        request.headers,
        request.stream(),
        max_files=MAX_FILES,
        max_fields=MAX_FIELDS,
        max_part_size=max_part_bytes,
    )
    try:
        form = await reader.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error
    try:
        parts: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in parts:
                raise ValueError(f"{name}: duplicate; send it once.")
            parts[name] = await value.read() if isinstance(value, UploadFile) else value
    finally:
        await form.close()
    return (
        {name: value for name, value in parts.items() if isinstance(value, str)},
        {name: value for name, value in parts.items() if isinstance(value, bytes)},
    )
