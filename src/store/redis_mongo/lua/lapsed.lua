-- Entries that a worker has held for too long are the asker's, who shuts the old holder out in MongoDB and gives them back.
-- ARGV: now, lines, consumer, lease (ms), injected (1: leases began at `now`, not by Redis' clock).
-- Gives for each: line, entry, id.
local now, lines, consumer, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
if not epoch_of_this_run() then return {} end
even_when_full()
if ARGV[5] == '1' then
  local time = redis.call('TIME')
  lease = lease + time[1] * 1000 + math.floor(time[2] / 1000) - now
end
local answer = {}
for line = 0, lines - 1 do
  local stream = of(line, 'jobs')
  -- Worker by worker: what was given back waits as long as it has to, and may be much.
  for _, worker in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
    local name, held = worker[2], worker[4]
    if held > 0 and name ~= FREE then
      for _, pending in ipairs(redis.call('XPENDING', stream, GROUP, 'IDLE', number(lease), '-', '+', 256, name)) do
        local entries = redis.call('XCLAIM', stream, GROUP, consumer, '0', pending[1])
        if not entries[1] then redis.call('XACK', stream, GROUP, pending[1]) end
        for _, entry in ipairs(ours(line, entries)) do
          redis.call('HSET', index, entry[2][2], held_at(line, entry[1], consumer))
          answer[#answer + 1] = tostring(line)
          answer[#answer + 1] = entry[1]
          answer[#answer + 1] = entry[2][2]
        end
      end
    elseif held == 0 and worker[6] > 3600000 then
      -- Workers that have gone leave their names behind.
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, name)
    end
  end
  redis.call('ZREMRANGEBYSCORE', of(line, 'resting'), '-inf', number(now))
end
return answer
