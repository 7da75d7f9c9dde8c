"""What goes out in formats of other tools: DICOM-SEG and nnU-Net."""
