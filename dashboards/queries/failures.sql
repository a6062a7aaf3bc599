-- What went wrong? Runs that failed or diverged and attempts that failed, with their errors; no row means nothing.
SELECT study, 'run' AS what, order_id, arm, phase, status, error
FROM trials
WHERE status IN ('failed', 'diverged')
UNION ALL BY NAME
SELECT study, 'attempt' AS what, order_id, outcome AS status, error
FROM attempts
WHERE outcome <> 'complete'
ORDER BY study, what, order_id, arm
