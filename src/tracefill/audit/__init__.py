"""How complete the chains are, which boundary breaks them, and why: from exported spans alone.

Readers (``audit/readers``) fill a :class:`~tracefill.audit.spans.Spans` table, :func:`tracefill.audit.chains.audit`
judges it, ``audit/report*`` show the result. Nothing here needs the compiled core.
"""
