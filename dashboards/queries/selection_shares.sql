-- Which teacher did each arm choose, epoch by epoch? Mean share over its complete confirmation runs, 0 to 1.
SELECT study, arm, replace(name, 'selection/', '') AS teacher, epoch, avg(value) AS share, count(*) AS runs
FROM epochs
WHERE phase = 'confirm' AND starts_with(name, 'selection/')
  AND trial_id IN (SELECT trial_id FROM trials WHERE status = 'complete')
GROUP BY study, arm, teacher, epoch
ORDER BY study, arm, teacher, epoch
