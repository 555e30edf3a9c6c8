"""The live page of the admin port: what it is made of, what it is told, and the pages that are open.

Imports `documents` and what is below; `rest` serves it. `index.html`, `page.js` and `page.css` are the page as a browser gets
it: no library, no other host, nothing inline. Whatever comes from an application is text in it, never markup.
"""
