-- Jobs that a worker held have been settled in MongoDB: out of the index, and what they wait for next is noted.
-- ARGV: now, lines, consumer, counts by (waiting, open, live), ring (1: others may have room now), then for each job: line, entry, id,
-- which (held: if this worker still holds it, or else whoever does deals with it; any: wherever it is by now), next line, tenant,
-- next due_at (ms; -1: none).
even_when_full()
local now, consumer = tonumber(ARGV[1]), ARGV[3]
count(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
if not epoch() then return 0 end
local rung, dealt = ARGV[7] == '1', {}
for i = 8, #ARGV, 7 do
  local line, entry, id, due_at = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 6])
  if ARGV[i + 3] == 'any' then
    local where, name = place(id)
    if name then remove(where, {{name, id}}) end
  end
  dealt[line] = dealt[line] or {}
  table.insert(dealt[line], {entry, id})
  if due_at >= 0 then
    local next_line, tenant = ARGV[i + 4], ARGV[i + 5]
    local first = redis.call('ZRANGE', of(next_line, 'asleep'), 0, 0, 'WITHSCORES')
    rung = rung or not first[2] or tonumber(first[2]) > due_at
    if due_at > now then sleep(next_line, tenant, ARGV[i + 6]) else take_turn(next_line, tenant) end
  end
end
for line, entries in pairs(dealt) do remove(line, held_by(line, entries, consumer)) end
if rung then ring() end
return 1
