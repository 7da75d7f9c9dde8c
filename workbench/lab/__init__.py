"""What people look at: figures, widgets, reports, result folders, napari. Reads what the rooms below leave."""
