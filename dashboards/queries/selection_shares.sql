-- Which teacher did each arm choose, epoch by epoch? Mean share over its confirmed runs, 0 to 1.
SELECT epochs.arm, replace(epochs.name, 'selection/', '') AS teacher, epochs.epoch, avg(epochs.value) AS share,
       count(*) AS runs
FROM epochs JOIN trials USING (trial_id)
WHERE epochs.phase = 'confirm' AND trials.status = 'complete' AND starts_with(epochs.name, 'selection/')
GROUP BY epochs.arm, teacher, epochs.epoch
ORDER BY epochs.arm, teacher, epochs.epoch
