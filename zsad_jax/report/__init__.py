"""Tables, charts, heat maps, figures and the HTML page of a run: data in, text or PNG bytes out, no files."""
