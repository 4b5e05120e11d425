"""What people look at: inspection, comparison, tables."""
