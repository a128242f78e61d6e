"""A rolling restart of three real nodes behind a real HAProxy, under a steady load: `make rolling`."""
