-- The three best proposals of every arm, with what was proposed.
SELECT arm, number, metrics.log_loss AS log_loss, metrics.accuracy AS accuracy, parameters
FROM trials
WHERE phase = 'search' AND status = 'complete'
QUALIFY row_number() OVER (PARTITION BY arm ORDER BY metrics.log_loss, number) <= 3
ORDER BY arm, log_loss
