"""``seqkit bench series``: protocols on public series, each model beside simple methods on the same windows."""
