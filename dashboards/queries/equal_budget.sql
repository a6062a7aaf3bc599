-- Did every arm get the same search? One row per arm; all counts must be equal.
SELECT arm, count(*) AS trials, count(*) FILTER (status <> 'complete') AS failed_or_diverged
FROM trials
WHERE phase = 'search'
GROUP BY arm
ORDER BY arm
