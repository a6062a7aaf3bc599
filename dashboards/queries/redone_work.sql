-- Which attempts never ended, and were they begun again? A killed order is redone whole; no row means that nothing
-- was lost. `seconds_lost` is the time until the next attempt, at most what was redone.
WITH begun AS (
    SELECT *, lead(started_at) OVER (PARTITION BY study, order_id ORDER BY attempt) AS begun_again FROM attempts
)
SELECT study, order_id, attempt, host, pid, started_at, begun_again IS NOT NULL AS redone,
       epoch(begun_again - started_at) AS seconds_lost
FROM begun
WHERE ended_at IS NULL
ORDER BY study, order_id, attempt
