"""A network measured against bicubic: the protocol, records, tables and the report."""
