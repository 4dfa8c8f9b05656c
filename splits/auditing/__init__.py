"""What the audit of a split looks at, one module a question."""
