"""Pure array functions shared by methods: similarity maps, losses, windows, crops, nearest neighbours."""
