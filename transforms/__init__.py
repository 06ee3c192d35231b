"""The transforms: one file without a leading underscore is one, files with one are shared machinery."""
