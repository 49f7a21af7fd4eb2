"""Data work, without torch: raw log files in, training-ready Parquet and the feature state out."""
