"""The lowest floor: settings, files, devices, processes, convolutions."""
