"""Video: files and arrays as frames on a uniform time grid."""
