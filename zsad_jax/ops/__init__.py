"""Pure array functions shared by methods: similarities and maps, losses, windows, crops, nearest neighbours."""
