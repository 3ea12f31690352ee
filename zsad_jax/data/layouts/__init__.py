"""Layouts of raw folders: each module's `scan` returns the inventory of a folder laid out in its way.

`mvtec` and `image_folders` serve the published data sets whose catalogue entry states such a layout, the modules named
after a data set those with a layout of their own, and `mvtec`, `plain_folders` and `image_table` images of your own.
"""
