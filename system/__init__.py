"""What every room needs: settings, files, devices, processes, convolutions."""
