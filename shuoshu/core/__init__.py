"""What every stage uses: settings, command line, files, device. Imports no other folder."""
