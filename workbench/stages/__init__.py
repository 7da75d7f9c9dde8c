"""The method, one module a stage, in this order: liver, tumor, consistency, candidates, radiomics, selection, forest, boundary, metrics."""
