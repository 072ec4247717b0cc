// A browser that reads the book from a folder may not open other pages to make excerpts of what it finds.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
