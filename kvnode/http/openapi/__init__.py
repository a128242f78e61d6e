"""The description of the whole HTTP surface in OpenAPI 3.1, at /openapi.json.

`operations.py` has one entry for each route and method, `parameters.py` and `schemas.py` what those name, `document.py`
makes the document of the route table and these: a route without an entry is in it and says so, and fails a test.
"""

from kvnode.http.openapi.document import routes

__all__ = ["routes"]
