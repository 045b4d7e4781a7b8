"""Files to batches; knows no model."""
