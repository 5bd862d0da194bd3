"""Other tools' adapter files: read into packages, and written from packages. Nothing here is loaded by accident."""
