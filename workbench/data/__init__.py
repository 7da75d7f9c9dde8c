"""What comes in: scans, labels, cohorts, phantoms, and the files that all rooms write. Imports only `volume` and `masks`."""
